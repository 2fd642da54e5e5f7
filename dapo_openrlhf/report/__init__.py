"""What a user sees of a run: progress lines, TensorBoard, a picture, a folder and the closing words."""
