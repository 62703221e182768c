"""Formats shared by server and trainer: the checkpoint on disk, and the job and its events on the pipe."""
