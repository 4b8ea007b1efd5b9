"""The phases in order, what is up to date, pre-registration, the manifest."""
