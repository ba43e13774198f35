"""Plans a training from the measures of a dataset, as nnU-Net does, and writes the plan as a commented config."""
