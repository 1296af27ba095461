"""Is a package what it says, does it run, and how far are its heads from the adapters?"""
