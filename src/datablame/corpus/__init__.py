"""The pool: documents, duplicates, lexical search."""
