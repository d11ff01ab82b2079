"""`shoal plan`: a dry run, from a config or a workload to a plan, its picture and its figures. No torch, no ray."""
