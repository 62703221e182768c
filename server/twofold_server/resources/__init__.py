"""The CPUs, memory and control groups of this machine."""
