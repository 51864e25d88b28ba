"""The studio: upload data, train several methods side by side, decide; a store, a worker and a web page over both."""
