"""Models without a framework: parameters, initial values, position tables, masks, FLOPs, groups, schedules."""
