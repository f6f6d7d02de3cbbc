"""Drawing an explorer's responses ahead of training into a store that training reads (``s2l explore``)."""
