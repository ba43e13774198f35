"""Pages, charts and pictures of what evaluations, trainings and sessions measured."""
