"""The formulas of the algorithms, each with its source: tensors or numbers in, numbers out."""
