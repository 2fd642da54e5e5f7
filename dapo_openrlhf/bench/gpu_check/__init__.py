"""An installation on one GPU, checked and measured part by part."""
