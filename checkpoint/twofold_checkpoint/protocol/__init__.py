"""The protocol between server and trainer: the job file, its events and its findings."""
