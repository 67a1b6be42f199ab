"""From a folder of scans to segmented scans: a plan, then the four bundles one after the other."""
