from repnoise.cli import main

main()
