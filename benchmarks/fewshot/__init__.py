"""The few-shot study: systems and ablations over numbers of labelled scans and seeds."""
