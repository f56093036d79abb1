"""The data sets, a file or a few each; they register themselves in :data:`vitrarium.data.source.DATASETS`."""
