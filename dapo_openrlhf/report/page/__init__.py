"""One HTML page about one or several runs, complete in itself: styles and drawings are in it, and no script."""
