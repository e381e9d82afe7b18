"""Every port in one process, and what the other stores are tested against."""
