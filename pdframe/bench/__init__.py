"""`pdframe bench`: many methods on the same frozen measurements, under equal conditions."""
