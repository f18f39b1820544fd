"""What is known of the devices that engines run on, and what to take for one."""
