"""What phases run on: the run folder, journals, the lock, work items wherever there is room."""
