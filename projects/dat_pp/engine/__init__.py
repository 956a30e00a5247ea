"""What a run needs, on mmengine alone."""
