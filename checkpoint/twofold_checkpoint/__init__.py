"""What the server and the trainer agree on: the checkpoint on disk, and the job and its events on the pipe."""
