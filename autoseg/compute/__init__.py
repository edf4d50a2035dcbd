"""Running jobs on this machine: executor, device, memory."""
