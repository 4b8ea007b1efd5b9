"""The study: its schema, the combinations that cannot be, its file."""
