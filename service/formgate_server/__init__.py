"""The Formgate server: decides, for every request to a form platform, whether the API key on it may do that."""
