"""SGLang servers behind the engine protocol: started, loaded, asked, watched and ended."""
