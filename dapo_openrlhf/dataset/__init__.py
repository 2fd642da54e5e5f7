"""From a file's rows to prompts as the model sees them: read, rendered, tokenized, checked, kept."""
