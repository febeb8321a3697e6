"""Media: what the bytes of a sample's input are. One file a medium; its name is the medium's."""
