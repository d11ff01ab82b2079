"""From tables, their use and the devices to a plan, with what it will cost. A function: no device, worker or file is touched."""
