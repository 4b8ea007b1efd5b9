"""Evidence that several methods judge by, a file each; evidence for one method stands beside it."""
