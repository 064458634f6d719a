"""Every reader of bytes that come from outside, fed with damaged and hostile ones."""
