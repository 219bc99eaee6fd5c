"""Many prompts from a file; a job that was stopped goes on."""
