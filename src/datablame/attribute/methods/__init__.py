"""Attribution methods, a file each."""
