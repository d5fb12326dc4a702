"""Parts of the methods whose tokens the features attend to."""
