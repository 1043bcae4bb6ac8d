"""The watchdog and the monitor: a process of its own."""
