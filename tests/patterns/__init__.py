"""The integration patterns, each by one suite over the logs it runs on."""
