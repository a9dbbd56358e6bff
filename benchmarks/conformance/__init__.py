"""Is my method right?"""
