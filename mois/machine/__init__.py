"""The machine: the processes that share work, interrupts, and full memory."""
