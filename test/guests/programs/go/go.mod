module lighter.test/program

go 1.22
