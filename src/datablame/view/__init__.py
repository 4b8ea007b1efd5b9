"""Local pages: all runs of a folder to look at, and the outputs of one run to label by hand."""
