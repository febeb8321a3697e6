"""What each job does; the files of jobs/ are their command lines."""
