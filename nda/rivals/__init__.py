"""The methods that NDA is compared with."""
