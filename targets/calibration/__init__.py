"""Calibration: operators measured on a device, until a model of it predicts others."""
