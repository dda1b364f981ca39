// A Go program: goroutines, the garbage collector, files, arguments, the environment.
package main

import (
	"fmt"
	"os"
	"sync"
)

func main() {
	results := make(chan int, 100)
	var wait sync.WaitGroup
	for i := range 100 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			results <- len(make([]byte, 1<<20)) * i
		}()
	}
	wait.Wait()
	close(results)
	sum := 0
	for result := range results {
		sum += result >> 20
	}
	fmt.Println("sum", sum)
	fmt.Println("args", os.Args[1:])
	fmt.Println("NAME", os.Getenv("NAME"))
	content, err := os.ReadFile("/etc/group")
	fmt.Printf("file %.7q %v\n", content, err)
	_, err = os.Stat("/nowhere")
	fmt.Println("missing", os.IsNotExist(err))
	os.Exit(7)
}
