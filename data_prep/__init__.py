"""Raw data sets in, prepared data out; never imports torch."""
