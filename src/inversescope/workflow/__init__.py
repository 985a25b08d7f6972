"""What the rules need to know: stages, source modules, the plan of jobs. Imports the configuration and sites alone."""
