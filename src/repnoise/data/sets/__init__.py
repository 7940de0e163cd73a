"""One file a data set: from the form in which its authors publish it to pairs or examples."""
