"""Dataset specs: the settings of `dataset.yaml`, and the files they match."""
