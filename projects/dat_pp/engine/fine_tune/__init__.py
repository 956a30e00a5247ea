"""Fine-tune on a dataset of one's own: recognize it, check it, write a project, train."""
