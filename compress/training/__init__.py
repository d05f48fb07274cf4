"""The parts of fine-tuning: what is minimised, how tasks are weighed, how the result is averaged and when it stops."""
