"""The output of a run for its user: progress lines, TensorBoard, a picture, a folder and the closing words."""
